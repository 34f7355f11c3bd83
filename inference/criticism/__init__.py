"""What a posterior says, whether its draws can be believed, and which model predicts better."""
