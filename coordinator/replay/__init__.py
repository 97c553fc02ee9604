"""`replay`: do the recorded inputs give the recorded outputs again?"""
