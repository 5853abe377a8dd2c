"""How far both sides are apart, and whether rounding explains it."""
