"""What any Keras classifier needs before it teaches or learns: outputs, features, batch norm."""
