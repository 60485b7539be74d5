"""Lower bounds of the specification's rows on subdomains."""
