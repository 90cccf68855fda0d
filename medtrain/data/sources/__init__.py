"""Where labelled images come from: tables, folders, MedMNIST files and phantoms."""
