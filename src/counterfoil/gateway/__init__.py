"""HTTP in: routes, reading of bodies, authentication, and one answer for everything that can go wrong."""
