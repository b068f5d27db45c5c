"""Every public verb, a file each, with the class of its result beside it."""
