"""`ddetr predict`: detections in pictures, in videos and before a webcam."""
