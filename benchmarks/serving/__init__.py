"""Servers that users would pick, under the load of a tool that users have: guidellm's conversations (`__main__`)."""
