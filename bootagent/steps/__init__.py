"""Steps: plain frozen values that look at the machine and bring it to what they say. None knows another."""
