"""Prints the settings that flags of train.py give, as JSON."""

import json

from models.loading import is_pretrained
from stkd_keras.cli import app
from stkd_keras.cli.train_flags import GROUPS
from stkd_keras.cli.train_settings import settings_from_flags


def main() -> None:
    """Runs the command."""
    settings = settings_from_flags(is_pretrained)
    print(json.dumps({**settings.stored(), "needs_teacher": settings.needs_teacher}))


if __name__ == "__main__":
    app.run(main, "Prints the settings that flags give.", GROUPS)
