"""What happens in one run of a grid."""
