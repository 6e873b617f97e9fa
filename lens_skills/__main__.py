"""``python -m lens_skills``: the same as the script ``lens-skills``."""

from lens_skills.cli import main

if __name__ == "__main__":
    main()
