"""Who is it: one photo each of many people, and the name of the person in another photo."""
