"""What trains models again and again: retraining, and the verbs that are made of it."""
