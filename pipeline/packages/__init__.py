"""The folder that a build makes: opened, converted, and the runtime it runs best in."""
