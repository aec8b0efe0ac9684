"""One file per stage: the inputs' folders and the settings in, its own folder out."""
