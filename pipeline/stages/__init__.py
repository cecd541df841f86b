"""The steps of a build, each from the artefacts of earlier ones to its own."""
