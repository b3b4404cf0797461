"""Where pairs come from: each source yields rows and says what its content is."""
