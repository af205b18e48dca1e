"""What a tenant that floods does to another one."""
