"""Programs of the Makefile, the Procfile and the images; no part of the installed distribution."""
