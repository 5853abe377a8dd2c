"""The torch side: what the user gives, its runs, and what they show."""
