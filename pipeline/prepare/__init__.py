"""What comes before a build: build files, exports, the table of networks, the state of this machine."""
