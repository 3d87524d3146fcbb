"""Several devices and several processes: the mesh, placement, collectives."""
