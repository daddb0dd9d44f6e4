"""Pages of docs/ that are made from the code, and the check that every link of the docs leads somewhere."""
