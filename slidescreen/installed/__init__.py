"""The models of this installation: which there are, whether they work, and how one comes in or goes out as a file."""
