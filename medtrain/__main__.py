"""`python -m medtrain`."""

from medtrain.cli._processes import stop_with_launcher
from medtrain.cli.app import main

if __name__ == "__main__":
    stop_with_launcher()
    main()
