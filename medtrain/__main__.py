"""`python -m medtrain`."""

from medtrain.cli.app import main

if __name__ == "__main__":
    main()
