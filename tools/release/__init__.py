"""What is done before a release: the archives are looked through, and the wheel is used as a stranger would."""
