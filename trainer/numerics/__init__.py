"""Numbers that go wrong: found without waiting for the device, named exactly, and what is done about them."""
