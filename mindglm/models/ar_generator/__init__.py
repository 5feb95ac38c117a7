"""The AR generator: prompt -> image codes, with the vision tower and the VQ that make codes of images."""
