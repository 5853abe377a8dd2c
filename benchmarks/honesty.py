"""Check the corpus of dishonest ports and their honest twins: `python -m benchmarks.honesty [words of kinds]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def main(words: list[str]) -> int:
    """Print a line for each port and each twin, and how many came out as they should."""
    import jax
    from honesty.corpus import dishonest, honest, is_plain_match, pairs

    wrong = total = 0
    for kind, base in pairs():
        if words and not any(word in f"{kind.name} {base.name}" for word in words):
            continue
        total += 1
        found, twin = dishonest(kind, base), honest(kind, base)
        lines = []
        if is_plain_match(found):
            lines.append("PLAIN MATCH")
        if getattr(twin, "verdict", None) != "match":
            lines.append(f"FALSE ALARM {getattr(twin, 'headline', twin)}")
        wrong += bool(lines)
        said = getattr(found, "headline", None) or f"refused: {found}".splitlines()[0]
        said += "".join(f" | {line}" for line in getattr(found, "unexercised", []))
        print(f"{'; '.join(lines) or 'ok'}: {kind.name}, {base.name}: {said[:170]}", flush=True)
        jax.clear_caches()
    print(f"{total - wrong} of {total} ports and their twins as they should be")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
