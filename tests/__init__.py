"""Each promise of isoplan as a test that can fail; files are named after the file that they test."""
