"""One page that answers: a study's runs collected into facts, facts into panels, panels into one HTML file."""
