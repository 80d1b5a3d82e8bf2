"""Small models of rules that are decided and not all built: searched, or drawn at random, with wrong rules beside them
that must be seen to fail. They share no code with kimberlite: a rule that is misread in one is not misread in both."""
