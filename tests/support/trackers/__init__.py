"""Stand-ins for packages of experiment trackers, with the signatures that we call; put this folder on the path."""
