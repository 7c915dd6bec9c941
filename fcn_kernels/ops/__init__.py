"""One file per operator: schema, fake, autograd, vmap rule and the public function."""
