"""The distiller: one training batch from inputs to losses."""
