"""What the site is made of besides docs/*.md: pages from the code, pages from the repository."""
