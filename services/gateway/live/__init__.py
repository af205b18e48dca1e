"""The cluster as this gateway knows it, for who watches: composed only while somebody does."""
