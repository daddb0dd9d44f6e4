"""Where rows go: the interface, and one module for each kind of destination."""
