"""What a package is worth: speed, accuracy, and where accuracy is lost."""
