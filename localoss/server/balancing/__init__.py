"""Several replicas of a model behind one endpoint: which one a request goes to, and what each of them is."""
