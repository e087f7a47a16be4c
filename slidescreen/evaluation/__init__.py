"""How well a classifier names single cells: everything that Matek et al. 2019 report, from its predictions on known cells."""
