"""Figures of held-out samples, pictures, and the page that shows them."""
