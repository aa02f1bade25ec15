"""What every floor stands on: errors that a user can mend, names, differences, random streams. No torch."""
