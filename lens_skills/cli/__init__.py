"""The shell: each command parses, calls the API and prints."""

from lens_skills.cli.script import main as main
