"""Build files and vdsp_params: read, checked, described."""
