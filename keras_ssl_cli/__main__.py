from keras_ssl_cli.main import main

main()
