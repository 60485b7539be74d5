"""The one door to auto_LiRPA: nothing outside this folder imports the host."""
