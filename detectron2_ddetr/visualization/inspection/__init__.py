"""What the attention of a model looks at, in pictures of one image: `ddetr inspect`."""
