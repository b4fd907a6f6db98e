"""Entry point of the `jobs` command."""


def main() -> int:
    return 0
