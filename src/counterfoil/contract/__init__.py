"""What the API says, as pure functions: bytes in, judged rows and answers out. No I/O, no clock."""
