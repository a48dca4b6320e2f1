"""Tools of the checkout; nothing in the container needs them."""
