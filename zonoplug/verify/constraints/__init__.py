"""What the unsafe set and split constraints leave of a subdomain."""
